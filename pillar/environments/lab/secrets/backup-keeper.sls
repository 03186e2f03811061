# What only the backup host knows: the passphrase of everything that it fetches, and the key of its
# server for uploads.
secrets:
  backup:
    passphrase: lab-backup-passphrase
  uploads:
    key: |
      -----BEGIN PRIVATE KEY-----
      MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQguWgEezbXVhbB6RpR
      la1fgAKVdxtUIxTLlDbUfk8Gzj2hRANCAAQjBsJoogjxB6f95vFpDpxoUP72NbJA
      nEaSItVwqGocXyhR4X9FSpyRL29KoKfLVTa4z1dGNU5+gLv8b7CNWjBP
      -----END PRIVATE KEY-----
