# Keys of the balancers. The lab guards nothing: real environments encrypt these files.
secrets:
  haproxy:
    # The lab's own authority, which signs the certificates of its sites.
    authority_key: |
      -----BEGIN PRIVATE KEY-----
      MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQghFBb88PtkeGrlXwj
      Ab8iSNPChB9aFan5aFcbJmx6BSKhRANCAAR0p6X2gf/RhdEWMIq5z+DFVZ82hIVd
      XnyK8cPMQOcn3psEZyXVc5nsvG1eEdn65fAM/S9fLhLwZRt5REvxr9oc
      -----END PRIVATE KEY-----
    # The account at an ACME server: what proves that a domain is ours.
    acme_account_key: |
      -----BEGIN RSA PRIVATE KEY-----
      MIIEogIBAAKCAQEAznUZ8waLC5ipWHDRxXKmfTUtYKLF4pCDTYh+ET+FkbNalH1x
      E2hJnGvYOorW3stEQfCsq8HKJV4ujI2N+mXfdCtKCpX09VdLntgit2E0UNBaNGNi
      P3xgz/NpOCg3wkade9tdpu2mXvNGBu2OSdhJb0+0Wf/1oh/iAcchLYUnWTUaJa60
      4pafiG8PUf9nGhKBO1ADKKK+YLrWiPPH/n1e50ZD8LAWuuFi12rUcNMVw7FsRGXN
      +5W+hiNhPvlSsrUKzPjScoasolxZFlu4he/2d0PbV5KIk5gligIm8J8V6D4p9Vtm
      JX2y/Os/xL4sBsEU3q2aj8KyUYD7KfNiKft9DQIDAQABAoIBAGPrXMG3uvfDzMHW
      6E9tK5KReAK7BJagZkvR8WGboqNfcElJZL6FzIp9z0qWA2QUcFaRiqAdzB3FtTWl
      FL/JKhppEQ6KgOF0fE7GQBcMXmt2SxHrv5MGOTyri5L4M/Q8hN96zZqKjeiKSKv1
      sNWgbfoHUzvzmwf58kH2A+Kp/N846uYmXAtMiErrf3qnzwqoz8p3ScVPpBCTFxXN
      qq/2GS53HAHGBuX5t2sqynCu8HnMYKno/k2FnxAzrVQbAOlfahb3oIOQbEVA7ewN
      kaU9oSZeyno5MalPdTG2y369qLrgatu1LFTYBHFQF7/pNJKpDJKE8rodi7nwnEh2
      wpc6ECkCgYEA97M0zVcFC4vHfHfStbTTCzG0LSKH+81bNC85fgkyY6RtaJ0DPOiw
      5xwtpyHM9L7ZrgYApmrQh0trcwT4A7CYcd8nsa6ssXyTRlC9apxxkwlmJwxmbRw1
      4bOwIkJuvoEwRi6Fa/VV1lJqNbwjB1CSB11wvBzgFXaK2P3nRXxK8N8CgYEA1WAc
      vvdgzKqzubzZkBL41ch3TeAP3nvglMzImmXlGTdyxPJSLKWdnB8siZkjVkxtP7wM
      mK+u82rM3vEOOvkBPZfQMigiwGy4kQM4qLSqfGKVRGMpjshUBgC+CFDxHdGdvEqv
      fmzhSzat1214pLyo7taJjPyDCSRG4A+UgWwhc5MCgYBMKV8H8ETN2wnYfKNeWZ42
      p+7FngN/6hGsBwU/eqZyuuElNHoFZWrXdPOYmy0A6BnYh2H1yYwavZbpQ9Lal5cY
      FEyJNrNE05AZI8RKHpZRZqdxRD/ONslef7idoB2bF+/29GDz4/ijsK2VniaLHjv4
      ZcO/I4XHM67Xr6JH3ELSswKBgH4OCs1ynZgr3IOFIs6vtputk3XJQfbBHjsqA/Ta
      746HKGFbetpveP4rmIctlie8fOojMRne6C9bz+6BYFPMmUQG9PM8rNMbJ6pbydQ4
      72MOZnqBTqLQjHsDY0DMeLWSCWqcgLLipfJmOitDu/sujWqUCazl3I/BA7II4kXX
      WKfLAoGAfnSLYzr3pjEt6P1bGYmP9yGV0rcUJBBrf5EUim+Rv6sVf0dFzO2JgzI0
      hHC95YpOvBX5+YrYyrQk56iSbPq15fRaXLiis7XpF6Wq3979/H1Qa3yjvNigkNCO
      R0yDwNAXsArnVUKbdhl6dgAGflmUkKS4M9j6KdfjQyjTnwiGvYg=
      -----END RSA PRIVATE KEY-----
