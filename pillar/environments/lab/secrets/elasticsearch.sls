# The password by which the log host writes to an Elasticsearch outside of the farm.
secrets:
  elasticsearch:
    password: lab-elasticsearch
