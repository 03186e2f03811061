# The database server: its cluster or its replica, its settings, who may connect, what the sites
# have in it.
{%- set postgres = salt['settings.get']('postgres') %}
{%- set folder = '/etc/postgresql/' ~ postgres.version ~ '/' ~ postgres.cluster %}
{%- set unit = 'postgresql@' ~ postgres.version ~ '-' ~ postgres.cluster %}
{%- set primary = salt['inventory.address']() == salt['inventory.primary']() %}
{#- One that is missing is told before anything is done. #}
{%- do salt['sites.secret']('postgres', 'replication') %}

# The package must not make a cluster of its own: ours is tuned before its first start.
postgres/no-default-cluster:
  file.managed:
    - name: /etc/postgresql-common/createcluster.conf
    - source: salt://postgres/files/createcluster.conf
    - mode: '0644'
    - makedirs: True

postgres/package:
  pkg.installed:
    - pkgs: [postgresql-{{ postgres.version }}, pgbadger]
    - install_recommends: False
    - require:
      - file: postgres/no-default-cluster

postgres/check:
  file.managed:
    - name: /usr/local/lib/saltern/postgres-check
    - source: salt://postgres/files/check
    - template: jinja
    - mode: '0755'
    - makedirs: True

# How the server's own account logs in on the other database hosts. A replica that took a password
# which the primary doesn't know would lose it at the next reconnect.
postgres/passwords:
  file.managed:
    - name: /var/lib/postgresql/.pgpass
    - source: salt://postgres/files/pgpass
    - template: jinja
    - user: postgres
    - group: postgres
    - mode: '0600'
    - show_changes: False
{%- if not primary %}
    - check_cmd: /usr/local/lib/saltern/postgres-check passwords
{%- endif %}
    - require:
      - pkg: postgres/package
      - file: postgres/check

# A server that comes back after another host took over must not take writes beside it.
postgres/guard:
  file.managed:
    - name: /usr/local/lib/saltern/postgres-guard
    - source: salt://postgres/files/guard
    - template: jinja
    - mode: '0755'
    - makedirs: True

postgres/unit:
  file.managed:
    - name: /etc/systemd/system/{{ unit }}.service.d/saltern.conf
    - source: salt://postgres/files/unit.conf
    - template: jinja
    - mode: '0644'
    - makedirs: True
    - require:
      - file: postgres/guard

postgres/daemon-reload:
  module.run:
    - name: service.systemctl_reload
    - onchanges:
      - file: postgres/unit

postgres/cluster:
  database.{{ 'primary' if primary else 'replica' }}:
    - require:
      - pkg: postgres/package
      - file: postgres/passwords
      - module: postgres/daemon-reload

postgres/config:
  file.managed:
    - name: {{ folder }}/conf.d/saltern.conf
    - source: salt://postgres/files/saltern.conf
    - template: jinja
    - user: postgres
    - group: postgres
    - mode: '0644'
    - check_cmd: /usr/local/lib/saltern/postgres-check settings
    - require:
      - database: postgres/cluster
      - file: postgres/check

postgres/access:
  file.managed:
    - name: {{ folder }}/pg_hba.conf
    - source: salt://postgres/files/pg_hba.conf
    - template: jinja
    - user: postgres
    - group: postgres
    - mode: '0640'
    - check_cmd: /usr/local/lib/saltern/postgres-check access
    - require:
      - database: postgres/cluster
      - file: postgres/check

postgres/running:
  service.running:
    - name: {{ unit }}
    - enable: True
    - require:
      - database: postgres/cluster
      - file: postgres/config
      - file: postgres/access

postgres/reload:
  cmd.run:
    - name: systemctl reload {{ unit }}
    - onchanges:
      - file: postgres/config
      - file: postgres/access
    - require:
      - service: postgres/running

postgres/settled:
  database.settled:
    - require:
      - cmd: postgres/reload
{% if primary %}
postgres/replication:
  database.user:
    - name: replication
    - secret: [postgres, replication]
    - replication: True
    - require:
      - service: postgres/running

# What a replica needs to ask of a primary to go back to where they parted (pg_rewind).
postgres/rewind:
  database.granted:
    - name: replication
    - functions:
      - pg_ls_dir(text, boolean, boolean)
      - pg_stat_file(text, boolean)
      - pg_read_binary_file(text)
      - pg_read_binary_file(text, bigint, bigint, boolean)
    - require:
      - database: postgres/replication

postgres/statistics:
  database.present:
    - name: postgres
    - owner: postgres
    - private: False
    - extensions: [pg_stat_statements]
    - require:
      - service: postgres/running
{%- for name, database in salt['sites.hosted']('postgres').items() %}

postgres/{{ name }}/user:
  database.user:
    - name: {{ database.user | json }}
    - secret: {{ ['postgres', 'users', database.user] | json }}
    - require:
      - service: postgres/running

postgres/{{ name }}/database:
  database.present:
    - name: {{ database.name | json }}
    - owner: {{ database.user | json }}
    - extensions: {{ database.extensions | json }}
    - schemas: {{ database.schemas | json }}
    - require:
      - database: postgres/{{ name }}/user
{%- endfor %}
{%- if salt['inventory.peers']('backup') %}

# Dumps from a replica, holds it still for a moment to compare a restored backup with it, and brings
# back what it restored, as the site that it belongs to.
{%- set own = salt['sites.hosted']('postgres').values() | map(attribute='user') | list %}

postgres/backup:
  database.user:
    - name: backup
    - secret: [backup, password]
    - createdb: True
    - grants: {{ (['pg_read_all_data', 'pg_monitor'] + own) | json }}
    - require:
      - service: postgres/running

postgres/backup-functions:
  database.granted:
    - name: backup
    - functions:
      - pg_wal_replay_pause()
      - pg_wal_replay_resume()
      - pg_switch_wal()
    - require:
      - database: postgres/backup
{%- endif %}
{%- endif %}
