# Passwords of the sites at the broker.
secrets:
  broker:
    sites:
      newsroom: lab-newsroom-broker
