# The key that signs the certificates by which hosts and log hosts know each other. The lab guards
# nothing.
secrets:
  rsyslog:
    authority_key: |
      -----BEGIN PRIVATE KEY-----
      MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg2yc8Xa3eqyzpaUbB
      /rD2Lf6imSbE5uNq2Yrls9m71FuhRANCAAQKYk5XxGLng9p/Hf3ZepwlNxuPro0w
      DgJJvnIWJOTc8ejB0hZiF1ME7ezV+DZHuIxTJKnXpl83F0PobWVJdr8Q
      -----END PRIVATE KEY-----
