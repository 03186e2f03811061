# The pooler before PostgreSQL.

# Before the package, so that the daemon's first start is already ours.
pgbouncer/unit:
  file.managed:
    - name: /etc/systemd/system/pgbouncer.service.d/saltern.conf
    - source: salt://pgbouncer/files/unit.conf
    - template: jinja
    - mode: '0644'
    - makedirs: True

pgbouncer/package:
  pkg.installed:
    - name: pgbouncer
    - require:
      - file: pgbouncer/unit

pgbouncer/daemon-reload:
  module.run:
    - name: service.systemctl_reload
    - onchanges:
      - file: pgbouncer/unit
    - require:
      - pkg: pgbouncer/package

pgbouncer/check:
  file.managed:
    - name: /usr/local/lib/saltern/pgbouncer-check
    - source: salt://pgbouncer/files/check
    - mode: '0755'
    - makedirs: True

pgbouncer/config:
  file.managed:
    - name: /etc/pgbouncer/pgbouncer.ini
    - source: salt://pgbouncer/files/pgbouncer.ini
    - template: jinja
    - user: postgres
    - group: postgres
    - mode: '0640'
    - check_cmd: /usr/local/lib/saltern/pgbouncer-check settings
    - require:
      - pkg: pgbouncer/package
      - file: pgbouncer/check
      - file: pgbouncer/access
      - file: pgbouncer/users

pgbouncer/access:
  file.managed:
    - name: /etc/pgbouncer/hba.conf
    - source: salt://pgbouncer/files/hba.conf
    - template: jinja
    - user: postgres
    - group: postgres
    - mode: '0640'
    - check_cmd: /usr/local/lib/saltern/pgbouncer-check access
    - require:
      - pkg: pgbouncer/package
      - file: pgbouncer/check

# Who may log in is asked of the server; here stands only who asks.
pgbouncer/users:
  file.managed:
    - name: /etc/pgbouncer/userlist.txt
    - contents: '"postgres" ""'
    - user: postgres
    - group: postgres
    - mode: '0640'
    - require:
      - pkg: pgbouncer/package

pgbouncer/running:
  daemon.running:
    - name: pgbouncer
    - restart_for: [/etc/systemd/system/pgbouncer.service.d/saltern.conf]
    - require:
      - file: pgbouncer/config
      - module: pgbouncer/daemon-reload

pgbouncer/reload:
  cmd.run:
    - name: systemctl reload pgbouncer
    - onchanges:
      - file: pgbouncer/config
      - file: pgbouncer/access
      - file: pgbouncer/users
    - require:
      - daemon: pgbouncer/running
