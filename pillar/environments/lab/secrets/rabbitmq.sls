# What the brokers know one another by, and the password of the user of the management page.
secrets:
  rabbitmq:
    cookie: lab-rabbitmq-cookie-0f1b3d5a7c
    operator: lab-rabbitmq-operator
