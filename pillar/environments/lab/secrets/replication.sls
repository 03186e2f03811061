# The password by which database hosts copy from each other: it reads everything.
secrets:
  postgres:
    replication: lab-replication
