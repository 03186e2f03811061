# Backups. A database host sends its log to the backup host and lets it fetch the data; the backup
# host keeps them, dumps the sites' databases, and shows every week that it all can be restored.
{%- set backup = salt['settings.get']('backup') %}
{%- set postgres = salt['settings.get']('postgres') %}
{%- set uploads = salt['settings.get']('uploads') %}
{%- set repositories = salt['inventory.peers']('backup') %}
{%- if not repositories %}

backup/missing:
  test.configurable_test_state:
    - name: backup
    - changes: False
    - result: True
    - warnings: "Nothing is backed up: no host of this environment has the role `backup`. See docs/backup.md."
{%- else %}
{%- set keeper = repositories[0].id == grains.id %}

# Before the package, so that the daemon's first start is already ours.
backup/unit:
  file.managed:
    - name: /etc/systemd/system/pgbackrest.service.d/saltern.conf
    - source: salt://backup/files/unit.conf
    - mode: '0644'
    - makedirs: True

{%- set restores = keeper and 'postgres' not in salt['inventory.services']() %}
{%- if restores %}

# The keeper makes no cluster: it starts one only to see that a backup can be restored.
backup/no-default-cluster:
  file.managed:
    - name: /etc/postgresql-common/createcluster.conf
    - source: salt://backup/files/createcluster.conf
    - mode: '0644'
    - makedirs: True
{%- endif %}

backup/package:
  pkg.installed:
    - pkgs: {{ (['pgbackrest', 'openssl'] + (['restic', 'python3', 'postgresql-' ~ postgres.version] if keeper else [])) | json }}
    - install_recommends: False
    - require:
      - file: backup/unit
{%- if restores %}
      - file: backup/no-default-cluster
{%- endif %}

backup/daemon-reload:
  module.run:
    - name: service.systemctl_reload
    - onchanges:
      - file: backup/unit
    - require:
      - pkg: backup/package

backup/tls:
  file.directory:
    - name: /etc/pgbackrest/tls
    - user: postgres
    - group: postgres
    - mode: '0750'
    - makedirs: True
    - require:
      - pkg: backup/package

backup/authority:
  file.managed:
    - name: /etc/pgbackrest/tls/authority.key
    - contents: {{ salt['sites.secret']('backup', 'authority_key') | json }}
    - user: root
    - group: root
    - mode: '0600'
    - show_changes: False
    - require:
      - file: backup/tls

backup/identity-tool:
  file.managed:
    - name: /usr/local/lib/saltern/backup-identity
    - source: salt://backup/files/identity
    - mode: '0755'
    - makedirs: True

backup/identity:
  cmd.run:
    - name: /usr/local/lib/saltern/backup-identity {{ grains.id }}
    - unless: /usr/local/lib/saltern/backup-identity --check {{ grains.id }}
    - require:
      - file: backup/authority
      - file: backup/identity-tool

backup/check:
  file.managed:
    - name: /usr/local/lib/saltern/pgbackrest-check
    - source: salt://backup/files/check
    - mode: '0755'
    - makedirs: True
{%- if keeper and not backup.s3.bucket %}

backup/repository:
  file.directory:
    - name: {{ backup.path }}
    - user: postgres
    - group: postgres
    - mode: '0750'
    - makedirs: True
    - require:
      - pkg: backup/package
{%- endif %}

backup/config:
  file.managed:
    - name: /etc/pgbackrest.conf
    - source: salt://backup/files/pgbackrest.conf
    - template: jinja
    - user: root
    - group: postgres
    - mode: '0640'
    - show_changes: False
    - check_cmd: /usr/local/lib/saltern/pgbackrest-check
    - require:
      - file: backup/check
      - cmd: backup/identity

backup/running:
  service.running:
    - name: pgbackrest
    - enable: True
    - reload: True
    - require:
      - module: backup/daemon-reload
    - watch:
      - file: backup/config
      - cmd: backup/identity
{%- if keeper %}

backup/passwords:
  file.managed:
    - name: /etc/saltern/backup.pgpass
    - contents: {{ ('*:*:*:backup:' ~ salt['sites.secret']('backup', 'password') | replace('\\', '\\\\') | replace(':', '\\:')) | json }}
    - mode: '0600'
    - makedirs: True
    - show_changes: False

backup/passphrase:
  file.managed:
    - name: /etc/saltern/backup.passphrase
    - contents: {{ salt['sites.secret']('backup', 'passphrase') | json }}
    - mode: '0600'
    - makedirs: True
    - show_changes: False
{%- if backup.s3.bucket %}

backup/s3:
  file.managed:
    - name: /etc/saltern/backup.s3
    - contents:
      - '# Managed by Saltern: salt/backup/init.sls.'
      - {{ ('AWS_ACCESS_KEY_ID=' ~ salt['sites.secret']('backup', 's3', 'key')) | json }}
      - {{ ('AWS_SECRET_ACCESS_KEY=' ~ salt['sites.secret']('backup', 's3', 'secret')) | json }}
      - {{ ('AWS_DEFAULT_REGION=' ~ backup.s3.region) | json }}
    - mode: '0600'
    - makedirs: True
    - show_changes: False
{%- endif %}

backup/plan:
  file.managed:
    - name: /etc/saltern/backup.json
    - contents: {{ salt['backup.plan']() | json | json }}
    - mode: '0644'
    - makedirs: True

backup/program:
  file.managed:
    - name: /usr/local/sbin/saltern-backup
    - source: salt://backup/files/saltern-backup
    - mode: '0755'

backup/service:
  file.managed:
    - name: /etc/systemd/system/saltern-backup@.service
    - source: salt://backup/files/backup.service
    - mode: '0644'

# The database host is set up at the same time in a farm's first run: it is waited for.
backup/stanza:
  backup.stanza:
    - require:
      - service: backup/running
{%- for verb in ['full', 'diff', 'dump', 'verify', 'uploads'] + ([] if backup.s3.bucket else ['seal']) %}

backup/{{ verb }}/timer:
  file.managed:
    - name: /etc/systemd/system/saltern-backup@{{ verb }}.timer
    - source: salt://backup/files/backup.timer
    - template: jinja
    - context:
        verb: {{ verb }}
        calendar: {{ (backup[verb] if verb in backup else uploads.tidy) | json }}
    - mode: '0644'
    - check_cmd: /usr/bin/systemd-analyze verify
    - tmp_ext: .timer

backup/{{ verb }}/enabled:
  service.running:
    - name: saltern-backup@{{ verb }}.timer
    - enable: True
    - require:
      - file: backup/service
      - file: backup/plan
      - file: backup/program
      - file: backup/passwords
      - file: backup/passphrase
      - backup: backup/stanza
    - watch:
      - file: backup/{{ verb }}/timer
{%- endfor %}
{%- if backup.s3.bucket %}

backup/seal/disabled:
  service.dead:
    - name: saltern-backup@seal.timer
    - enable: False
{%- endif %}

# A farm isn't without a backup until the first Sunday.
backup/first:
  backup.first:
    - require:
      - service: backup/full/enabled

backup/settled:
  backup.settled:
    - require:
      - backup: backup/first
{%- endif %}
{%- endif %}
