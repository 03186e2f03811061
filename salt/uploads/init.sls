# Backups of uploads by restic: an app host sends what is new, the backup host's server lets it add
# and read but not delete, and forgets by itself what is too old.
{%- set uploads = salt['settings.get']('uploads') %}
{%- set keepers = salt['inventory.peers']('backup') %}
{%- set keeper = keepers and keepers[0].id == grains.id %}
{%- set sends = 'app' in salt['inventory.roles']() %}
{%- if not keepers %}

uploads/missing:
  test.configurable_test_state:
    - name: uploads
    - changes: False
    - result: True
    - warnings: "No uploads are backed up: no host of this environment has the role `backup`. See docs/backup.md."
{%- else %}

uploads/package:
  pkg.installed:
    - pkgs: {{ (['restic'] + (['rclone'] if keeper else [])) | json }}
    - install_recommends: False

# By which app hosts know the server.
uploads/certificate:
  file.managed:
    - name: /etc/saltern/uploads.pem
    - source: salt://os/files/secret
    - template: jinja
    - context:
        path: [uploads, certificate]
    - check_cmd: /usr/bin/openssl x509 -noout -in
    - mode: '0644'
    - makedirs: True

uploads/passphrase:
  file.managed:
    - name: /etc/saltern/uploads.passphrase
    - source: salt://os/files/secret
    - template: jinja
    - context:
        path: [uploads, passphrase]
    - mode: '0600'
    - show_changes: False
    - require:
      - file: uploads/certificate
{%- if keeper %}

uploads/user:
  user.present:
    - name: saltern-uploads
    - system: True
    - home: {{ uploads.path }}
    - createhome: False
    - shell: /usr/sbin/nologin

uploads/folder:
  file.directory:
    - name: {{ uploads.path }}
    - user: saltern-uploads
    - group: saltern-uploads
    - mode: '0700'
    - require:
      - user: uploads/user

uploads/key:
  file.managed:
    - name: /etc/saltern/uploads.key
    - source: salt://os/files/secret
    - template: jinja
    - context:
        path: [uploads, key]
    - check_cmd: /usr/bin/openssl pkey -noout -in
    - mode: '0600'
    - show_changes: False
    - require:
      - file: uploads/certificate

uploads/login:
  file.managed:
    - name: /etc/saltern/uploads.login
    - source: salt://uploads/files/login
    - template: jinja
    - mode: '0600'
    - show_changes: False
    - require:
      - file: uploads/certificate

uploads/repository:
  cmd.run:
    - name: restic --no-cache --repo {{ uploads.path }} --password-file /etc/saltern/uploads.passphrase init && chown -R saltern-uploads {{ uploads.path }}
    - creates: {{ uploads.path }}/config
    - require:
      - pkg: uploads/package
      - file: uploads/folder
      - file: uploads/passphrase

uploads/server-unit:
  file.managed:
    - name: /etc/systemd/system/saltern-uploads-server.service
    - source: salt://uploads/files/server.service
    - template: jinja
    - mode: '0644'

uploads/server:
  service.running:
    - name: saltern-uploads-server
    - enable: True
    - require:
      - cmd: uploads/repository
    - watch:
      - file: uploads/server-unit
      - file: uploads/certificate
      - file: uploads/key
      - file: uploads/login
{%- endif %}
{%- if sends %}

uploads/daemon-reload:
  module.run:
    - name: service.systemctl_reload
    - onchanges:
      - file: uploads/service

uploads/access:
  file.managed:
    - name: /etc/saltern/uploads.repository
    - source: salt://uploads/files/repository
    - template: jinja
    - mode: '0600'
    - show_changes: False
    - require:
      - file: uploads/certificate

uploads/service:
  file.managed:
    - name: /etc/systemd/system/saltern-uploads@.service
    - source: salt://uploads/files/send.service
    - template: jinja
    - mode: '0644'
{%- for name in salt['sites.list']() %}

uploads/{{ name }}/timer:
  file.managed:
    - name: /etc/systemd/system/saltern-uploads@{{ name }}.timer
    - source: salt://uploads/files/send.timer
    - template: jinja
    - context:
        name: {{ name }}
    - mode: '0644'
    - check_cmd: /usr/bin/systemd-analyze verify
    - tmp_ext: .timer

uploads/{{ name }}/enabled:
  service.running:
    - name: saltern-uploads@{{ name }}.timer
    - enable: True
    - require:
      - pkg: uploads/package
      - file: uploads/access
      - file: uploads/passphrase
      - file: uploads/service
    - watch:
      - file: uploads/{{ name }}/timer

# In a farm's first run the backup host is set up at the same time: the service tries again.
uploads/{{ name }}/first:
  cmd.run:
    - name: systemctl start --no-block saltern-uploads@{{ name }}.service
    - onchanges:
      - file: uploads/{{ name }}/timer
    - require:
      - service: uploads/{{ name }}/enabled
{%- endfor %}
{%- endif %}
{%- endif %}
