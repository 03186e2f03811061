# Passwords of the sites at the Redis of the cache hosts.
secrets:
  redis:
    sites:
      newsroom: lab-newsroom-redis
