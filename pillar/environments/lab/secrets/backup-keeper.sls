# What only the backup host knows: the passphrase of everything that it keeps.
secrets:
  backup:
    passphrase: lab-backup-passphrase
