# The backup host's program, which the timers and the functions of `backup` run.
{%- set backup = salt['settings.get']('backup') %}

backup/passphrase:
  file.managed:
    - name: /etc/saltern/backup.passphrase
    - source: salt://os/files/secret
    - template: jinja
    - context:
        path: [backup, passphrase]
    - mode: '0600'
    - makedirs: True
    - show_changes: False
{%- if backup.s3.bucket %}

backup/s3:
  file.managed:
    - name: /etc/saltern/backup.s3
    - source: salt://backup/files/s3
    - template: jinja
    - mode: '0600'
    - makedirs: True
    - show_changes: False
{%- endif %}

backup/plan:
  file.managed:
    - name: /etc/saltern/backup.json
    - source: salt://backup/files/backup.json
    - template: jinja
    - mode: '0644'
    - makedirs: True

backup/program:
  file.managed:
    - name: /usr/local/sbin/saltern-backup
    - source: salt://backup/files/saltern-backup
    - mode: '0755'

backup/anonymise:
  file.managed:
    - name: /usr/local/lib/saltern/anonymise.py
    - source: salt://backup/files/anonymise.py
    - mode: '0644'
    - makedirs: True

backup/service:
  file.managed:
    - name: /etc/systemd/system/saltern-backup@.service
    - source: salt://backup/files/backup.service
    - template: jinja
    - mode: '0644'
  module.run:
    - name: service.systemctl_reload
    - onchanges:
      - file: backup/service
