# Passwords of the database users: for the database hosts and the hosts that connect to them.
secrets:
  postgres:
    users:
      newsroom: lab-newsroom-database
