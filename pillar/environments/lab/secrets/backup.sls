# What the backup host and the database hosts know: the key that signs their certificates for each
# other, and the password by which the backup host reads. The lab guards nothing.
secrets:
  backup:
    password: lab-backup-reader
    authority_key: |
      -----BEGIN PRIVATE KEY-----
      MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgdAQa56jcMmJZddwq
      dnMXaOrcO5PHQA/Z4HhNT7w0Q3OhRANCAAQ5tiznIZc+gDWnsDhep4+7oz5ynnaD
      iBMFoDsgW1k467hS8U1xzXjTkQGlDZL9MHyHgjcrPFwxxoATbI73yWUE
      -----END PRIVATE KEY-----
