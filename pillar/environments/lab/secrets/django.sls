# What only hosts that run the sites' code may know. The lab guards nothing: real environments
# encrypt these files.
secrets:
  sites:
    newsroom:
      secret_key: lab-newsroom-7d1f0c6b1f6e4a0e8a55c1b2d9e34f708b6ac2e5
