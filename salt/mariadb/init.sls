# MariaDB: the server and its settings, its place in the farm, the sites' users and databases, and
# the door through which replicas and the backup host get a copy of the data.
{%- set mariadb = salt['settings.get']('mariadb') %}
{%- set address = salt['inventory.address']() %}
{%- set primary = address == salt['inventory.primary']('mariadb') %}
{%- set all = salt['inventory.peers']('mariadb') | map(attribute='address') | list %}

# Before the package, so that the server's first start is already ours.
mariadb/unit:
  file.managed:
    - name: /etc/systemd/system/mariadb.service.d/saltern.conf
    - source: salt://mariadb/files/unit.conf
    - template: jinja
    - mode: '0644'
    - makedirs: True
    - require:
      - file: mariadb/guard

# A server that comes back after another host took over must not take writes beside it.
mariadb/guard:
  file.managed:
    - name: /usr/local/lib/saltern/mariadb-guard
    - source: salt://mariadb/files/guard
    - template: jinja
    - mode: '0755'
    - makedirs: True

mariadb/package:
  pkg.installed:
    - pkgs: [mariadb-server, mariadb-backup, ssl-cert, stunnel4]
    - install_recommends: False
    - require:
      - file: mariadb/unit

# The server's account reads the key of the certificate.
mariadb/account:
  user.present:
    - name: mysql
    - groups: [ssl-cert]
    - remove_groups: False
    - require:
      - pkg: mariadb/package

# Slow queries, and what copying had to say.
mariadb/logs:
  file.directory:
    - name: /var/log/mysql
    - user: mysql
    - group: adm
    - mode: '2750'
    - require:
      - user: mariadb/account

mariadb/check:
  file.managed:
    - name: /usr/local/lib/saltern/mariadb-check-settings
    - source: salt://mariadb/files/check
    - mode: '0755'
    - makedirs: True

mariadb/config:
  file.managed:
    - name: /etc/mysql/mariadb.conf.d/90-saltern.cnf
    - source: salt://mariadb/files/saltern.cnf
    - template: jinja
    - mode: '0644'
    - check_cmd: /usr/local/lib/saltern/mariadb-check-settings
    - require:
      - user: mariadb/account
      - file: mariadb/check

mariadb/daemon-reload:
  module.run:
    - name: service.systemctl_reload
    - onchanges:
      - file: mariadb/unit

mariadb/free:
  mariadb.free:
    - require:
      - pkg: mariadb/package

mariadb/running:
  service.running:
    - name: mariadb
    - enable: True
    - require:
      - mariadb: mariadb/free
      - module: mariadb/daemon-reload
      - file: mariadb/config
      - file: mariadb/logs

mariadb/peer:
  file.managed:
    - name: /etc/saltern/mariadb-peer.cnf
    - source: salt://mariadb/files/peer.cnf
    - template: jinja
    - context: {user: replication}
    - mode: '0600'
    - makedirs: True
    - show_changes: False

mariadb/copy-key:
  file.managed:
    - name: /etc/mysql/saltern-copy.key
    - source: salt://mariadb/files/copy.key
    - template: jinja
    - user: mysql
    - mode: '0600'
    - makedirs: True
    - show_changes: False
    - require:
      - user: mariadb/account

mariadb/fetch:
  file.managed:
    - name: /usr/local/lib/saltern/mariadb-fetch
    - source: salt://mariadb/files/fetch
    - template: jinja
    - mode: '0755'
    - makedirs: True

mariadb/place:
  mariadb.{{ 'primary' if primary else 'replica' }}:
    - require:
      - service: mariadb/running
      - file: mariadb/peer
      - file: mariadb/copy-key
      - file: mariadb/fetch

mariadb/settled:
  mariadb.settled:
    - require:
      - mariadb: mariadb/place
{%- if primary %}

# Also from this host itself: it asks the others before it takes writes, and they have this user by
# copying it.
mariadb/replication:
  mariadb.user:
    - name: replication
    - secret: [mariadb, copies, replication]
    - hosts: {{ all | json }}
    - rights: [REPLICATION SLAVE]
    - require:
      - mariadb: mariadb/place
{%- set keepers = salt['inventory.peers']('backup') %}
{%- if keepers %}
{%- set own = salt['sites.hosted']('mariadb').values() | map(attribute='name') | list %}

# Receives the log, holds a replica still for a moment to compare a restored backup with it, and
# brings back what it restored.
mariadb/backup:
  mariadb.user:
    - name: backup
    - secret: [mariadb, copies, backup]
    - hosts: {{ [keepers[0].address] | json }}
    - databases: {{ own | json }}
    - endings: [_restored_]
    - rights: [BINLOG MONITOR, REPLICATION SLAVE, REPLICATION SLAVE ADMIN, SELECT, SHOW VIEW]
    - require:
      - mariadb: mariadb/place
{%- endif %}
{%- for name, database in salt['sites.hosted']('mariadb').items() %}

mariadb/{{ name }}/database:
  mariadb.database:
    - name: {{ database.name | json }}
    - require:
      - mariadb: mariadb/place

mariadb/{{ name }}/user:
  mariadb.user:
    - name: {{ database.user | json }}
    - secret: {{ ['mariadb', 'users', database.user] | json }}
    - hosts: {{ (salt['inventory.peers']('app') + salt['inventory.peers']('worker')) | map(attribute='address') | unique | list | json }}
    - databases: [{{ database.name | json }}]
    - require:
      - mariadb: mariadb/{{ name }}/database
{%- endfor %}
{%- endif %}

# The door for copies. Opened last: a replica that waits for it finds its user, too.
mariadb/donor:
  file.managed:
    - name: /usr/local/lib/saltern/mariadb-donor
    - source: salt://mariadb/files/donor
    - mode: '0755'
    - makedirs: True

mariadb/donor/config:
  file.managed:
    - name: /etc/mysql/saltern-donor.conf
    - source: salt://mariadb/files/donor.conf
    - mode: '0644'
    - makedirs: True

mariadb/donor/service:
  file.managed:
    - name: /etc/systemd/system/saltern-mariadb-donor@.service
    - source: salt://mariadb/files/donor@.service
    - template: jinja
    - mode: '0644'

mariadb/donor/socket:
  file.managed:
    - name: /etc/systemd/system/saltern-mariadb-donor.socket
    - source: salt://mariadb/files/donor.socket
    - template: jinja
    - mode: '0644'

mariadb/donor/running:
  service.running:
    - name: saltern-mariadb-donor.socket
    - enable: True
    - require:
      - file: mariadb/donor
      - file: mariadb/donor/config
      - file: mariadb/donor/service
      - file: mariadb/copy-key
      - mariadb: mariadb/place
    - watch:
      - file: mariadb/donor/socket
