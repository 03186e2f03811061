# How app hosts send uploads to the backup host: who they are, what encrypts, how they know it.
secrets:
  uploads:
    password: lab-uploads-sender
    passphrase: lab-uploads-passphrase
    certificate: |
      -----BEGIN CERTIFICATE-----
      MIIBnjCCAUOgAwIBAgIUNVSNGg+XiAJVp/N8jBNS62/8MQwwCgYIKoZIzj0EAwIw
      GjEYMBYGA1UEAwwPc2FsdGVybi11cGxvYWRzMB4XDTI2MTEyMTA2NTM0OFoXDTM2
      MTExODA2NTM0OFowGjEYMBYGA1UEAwwPc2FsdGVybi11cGxvYWRzMFkwEwYHKoZI
      zj0CAQYIKoZIzj0DAQcDQgAEIwbCaKII8Qen/ebxaQ6caFD+9jWyQJxGkiLVcKhq
      HF8oUeF/RUqckS9vSqCny1U2uM9XRjVOfoC7/G+wjVowT6NnMGUwHQYDVR0OBBYE
      FMAxCGPrv/gq2+6iaEBKgucbDFGqMB8GA1UdIwQYMBaAFMAxCGPrv/gq2+6iaEBK
      gucbDFGqMA8GA1UdEwEB/wQFMAMBAf8wEgYDVR0RBAswCYIHYmFja3VwMTAKBggq
      hkjOPQQDAgNJADBGAiEA40IEoNnyXY74rAEFd4y4aEVUBn4ia2G7qKycQY5Dd3oC
      IQD6Nh7LaDB2hS00fbfpodNMmySxUeV2YJSY87E09t2bYw==
      -----END CERTIFICATE-----
