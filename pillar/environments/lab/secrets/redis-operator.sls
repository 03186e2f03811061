# Password of the user that looks after Redis and copies it: for the hosts that run it.
secrets:
  redis:
    operator: lab-redis-operator
