# Passwords of the sites whose database is MariaDB: for the hosts that run it or connect to it.
secrets:
  mariadb:
    users:
      newsroom: lab-newsroom-mariadb
