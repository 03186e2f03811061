# The database server: its cluster, its settings, who may connect, the sites' databases.
{%- set postgres = salt['settings.get']('postgres') %}
{%- set folder = '/etc/postgresql/' ~ postgres.version ~ '/' ~ postgres.cluster %}
{%- set data = '/var/lib/postgresql/' ~ postgres.version ~ '/' ~ postgres.cluster %}
{%- set programs = '/usr/lib/postgresql/' ~ postgres.version ~ '/bin' %}

# The package must not make a cluster of its own: ours is tuned before its first start.
postgres/no-default-cluster:
  file.managed:
    - name: /etc/postgresql-common/createcluster.conf
    - source: salt://postgres/files/createcluster.conf
    - mode: '0644'
    - makedirs: True

postgres/package:
  pkg.installed:
    - name: postgresql-{{ postgres.version }}
    - require:
      - file: postgres/no-default-cluster

postgres/cluster:
  cmd.run:
    - name: pg_createcluster {{ postgres.version }} {{ postgres.cluster }} --port {{ postgres.port }} --locale C.UTF-8 --start-conf auto -- --data-checksums --auth-host scram-sha-256
    - creates: {{ data }}/PG_VERSION
    - require:
      - pkg: postgres/package

postgres/config:
  file.managed:
    - name: {{ folder }}/conf.d/saltern.conf
    - source: salt://postgres/files/saltern.conf
    - template: jinja
    - user: postgres
    - group: postgres
    - mode: '0644'
    - check_cmd: runuser -u postgres -- {{ programs }}/postgres -C max_connections -D {{ data }} -c config_file=
    - tmp_ext: .conf
    - require:
      - cmd: postgres/cluster

postgres/access:
  file.managed:
    - name: {{ folder }}/pg_hba.conf
    - source: salt://postgres/files/pg_hba.conf
    - template: jinja
    - user: postgres
    - group: postgres
    - mode: '0640'
    - require:
      - cmd: postgres/cluster

postgres/service:
  service.running:
    - name: postgresql@{{ postgres.version }}-{{ postgres.cluster }}
    - enable: True
    - reload: True
    - watch:
      - file: postgres/config
      - file: postgres/access
{% if salt['inventory.address']() == salt['inventory.primary']() %}
{%- for name in salt['sites.list']() %}
{%- set database = salt['sites.get'](name).database %}
{%- if not database.host %}
postgres/{{ name }}/user:
  postgres_user.present:
    - name: {{ database.user }}
    - password: {{ salt['sites.database_password'](name) | json }}
    - encrypted: scram-sha-256
    - login: True
    - user: postgres
    - db_port: {{ postgres.port }}
    - require:
      - service: postgres/service

postgres/{{ name }}/database:
  postgres_database.present:
    - name: {{ database.name }}
    - owner: {{ database.user }}
    - encoding: UTF8
    - template: template0
    - user: postgres
    - db_port: {{ postgres.port }}
    - require:
      - postgres_user: postgres/{{ name }}/user
{% endif %}
{%- endfor %}
{%- endif %}
