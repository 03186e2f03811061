# The passwords by which MariaDB hosts copy from each other and the backup host copies from them:
# they read everything.
secrets:
  mariadb:
    copies:
      replication: lab-mariadb-replication
      backup: lab-mariadb-backup
