# Backups of MariaDB, on the backup host: when they are made, and a first one.
{%- set backup = salt['settings.get']('backup') %}
{%- set runs = [('mariadb-full', backup.diff), ('mariadb-log', 'hourly'), ('mariadb-verify', backup.verify), ('mariadb-anonymise', backup.anonymise)] %}
{%- if not salt['inventory.peers']('database') %}
{%- do runs.append(('uploads', salt['settings.get']('uploads').tidy)) %}
{%- endif %}

include:
  - backup.program
  - mariadb.keeper
{%- for verb, calendar in runs %}

backup/{{ verb }}/timer:
  file.managed:
    - name: /etc/systemd/system/saltern-backup@{{ verb }}.timer
    - source: salt://backup/files/backup.timer
    - template: jinja
    - context:
        verb: {{ verb }}
        calendar: {{ calendar | json }}
    - mode: '0644'
    - check_cmd: /usr/bin/systemd-analyze verify
    - tmp_ext: .timer

backup/{{ verb }}/enabled:
  service.running:
    - name: saltern-backup@{{ verb }}.timer
    - enable: True
    - require:
      - file: backup/service
      - file: backup/program
      - file: backup/passphrase
      - service: mariadb/keeper/log
    - watch:
      - file: backup/{{ verb }}/timer
{%- endfor %}

backup/mariadb/first:
  backup.first:
    - kind: mariadb-full
    - require:
      - service: backup/mariadb-full/enabled
{%- if not salt['inventory.peers']('database') %}

backup/settled:
  backup.settled:
    - require:
      - backup: backup/mariadb/first
{%- endif %}
