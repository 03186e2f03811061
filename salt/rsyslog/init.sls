# Logs: every host sends its journal to the hosts with the role `log`, which keep it in files.
{%- set rsyslog = salt['settings.get']('rsyslog') %}
{%- set keepers = salt['inventory.peers']('log') %}
{%- set keeps = grains.id in keepers | map(attribute='id') %}

rsyslog/journal:
  file.managed:
    - name: /etc/systemd/journald.conf.d/saltern.conf
    - source: salt://rsyslog/files/journald.conf
    - template: jinja
    - mode: '0644'
    - makedirs: True
  cmd.run:
    - name: systemctl restart systemd-journald && journalctl --flush
    - onchanges:
      - file: rsyslog/journal
{% if not keepers %}
rsyslog/nowhere:
  test.show_notification:
    - text: Logs stay in each host's journal, as no host of this environment has the role `log`.
{%- else %}
# Before the package, so that the daemon's first start is already ours.
rsyslog/authority:
  file.managed:
    - name: /etc/rsyslog/tls/authority.key
    - source: salt://os/files/secret
    - template: jinja
    - context:
        path: [rsyslog, authority_key]
    - user: root
    - group: root
    - mode: '0600'
    - dir_mode: '0700'
    - makedirs: True
    - show_changes: False

rsyslog/identity-tool:
  file.managed:
    - name: /usr/local/lib/saltern/identity
    - source: salt://os/files/identity
    - mode: '0755'
    - makedirs: True

rsyslog/identity:
  cmd.run:
    - name: /usr/local/lib/saltern/identity /etc/rsyslog/tls {{ grains.id }} root
    - unless: /usr/local/lib/saltern/identity --check /etc/rsyslog/tls {{ grains.id }} root
    - require:
      - file: rsyslog/authority
      - file: rsyslog/identity-tool

rsyslog/package:
  pkg.installed:
    - pkgs: {{ (['rsyslog', 'rsyslog-relp', 'openssl'] + (['rsyslog-gnutls', 'rsyslog-elasticsearch', 'logrotate'] if keeps else [])) | json }}
    - install_recommends: False
{%- if keeps %}

rsyslog/hosts:
  file.managed:
    - name: /etc/rsyslog.d/hosts.json
    - source: salt://rsyslog/files/hosts.json
    - template: jinja
    - mode: '0644'
    - check_cmd: python3 -m json.tool
    - require:
      - pkg: rsyslog/package
    - require_in:
      - file: rsyslog/config
    - watch_in:
      - service: rsyslog/service

rsyslog/folder:
  file.directory:
    - name: {{ rsyslog.folder }}
    - user: root
    - group: adm
    - mode: '0750'
    - require_in:
      - service: rsyslog/service

rsyslog/rotation:
  file.managed:
    - name: /etc/logrotate.d/saltern-farm
    - source: salt://rsyslog/files/logrotate
    - template: jinja
    - mode: '0644'
    - check_cmd: logrotate --debug
    - require:
      - pkg: rsyslog/package
{%- endif %}

rsyslog/config:
  file.managed:
    - name: /etc/rsyslog.conf
    - source: salt://rsyslog/files/rsyslog.conf
    - template: jinja
    - mode: '0600'
    - show_changes: False
    - check_cmd: rsyslogd -N1 -f
    - require:
      - pkg: rsyslog/package
      - cmd: rsyslog/identity

# rsyslog can't reload. A restart loses nothing: it goes on in the journal where it was.
rsyslog/service:
  service.running:
    - name: rsyslog
    - enable: True
    - watch:
      - file: rsyslog/config
      - cmd: rsyslog/identity
    - require:
      - cmd: rsyslog/journal
{%- endif %}
