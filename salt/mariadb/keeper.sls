# The backup host's part of MariaDB: receives the log as it is written, keeps copies in restic, and
# shows that they can be restored. Included by `backup.mariadb`, which says when.

mariadb/keeper/package:
  pkg.installed:
    - pkgs: [mariadb-server-core, mariadb-client, mariadb-backup, restic, stunnel4, python3]
    - install_recommends: False

# Runs the server that a backup is tried on.
mariadb/keeper/account:
  user.present:
    - name: mysql
    - system: True
    - home: /nonexistent
    - createhome: False
    - shell: /usr/sbin/nologin

mariadb/keeper/login:
  file.managed:
    - name: /etc/saltern/mariadb-backup.cnf
    - source: salt://mariadb/files/peer.cnf
    - template: jinja
    - context: {user: backup}
    - mode: '0600'
    - makedirs: True
    - show_changes: False

mariadb/keeper/copy-key:
  file.managed:
    - name: /etc/mysql/saltern-copy.key
    - source: salt://mariadb/files/copy.key
    - template: jinja
    - mode: '0600'
    - show_changes: False
    - require:
      - pkg: mariadb/keeper/package

mariadb/keeper/fetch:
  file.managed:
    - name: /usr/local/lib/saltern/mariadb-fetch
    - source: salt://mariadb/files/fetch
    - template: jinja
    - mode: '0755'
    - makedirs: True

mariadb/keeper/plan:
  file.managed:
    - name: /etc/saltern/mariadb-backup.json
    - source: salt://mariadb/files/backup.json
    - template: jinja
    - mode: '0644'
    - makedirs: True

mariadb/keeper/program:
  file.managed:
    - name: /usr/local/lib/saltern/mariadb_backup.py
    - source: salt://mariadb/files/mariadb_backup.py
    - mode: '0644'
    - makedirs: True

# Until there is a host that takes writes it tries again.
mariadb/keeper/log-unit:
  file.managed:
    - name: /etc/systemd/system/saltern-mariadb-log.service
    - source: salt://mariadb/files/log.service
    - template: jinja
    - mode: '0644'

mariadb/keeper/log:
  service.running:
    - name: saltern-mariadb-log
    - enable: True
    - require:
      - pkg: mariadb/keeper/package
      - file: mariadb/keeper/login
    - watch:
      - file: mariadb/keeper/log-unit
      - file: mariadb/keeper/plan
      - file: mariadb/keeper/program
