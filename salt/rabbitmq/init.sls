# The broker: RabbitMQ, its virtual hosts, users and rights. It reads its settings only when it
# starts, and is never restarted here; virtual hosts, users and rights change while it runs.

# Before the package, so that the daemon doesn't start before its configuration is there.
rabbitmq/unit:
  file.managed:
    - name: /etc/systemd/system/rabbitmq-server.service.d/saltern.conf
    - source: salt://rabbitmq/files/unit.conf
    - template: jinja
    - mode: '0644'
    - makedirs: True

rabbitmq/epmd:
  file.managed:
    - name: /etc/systemd/system/epmd.socket.d/saltern.conf
    - source: salt://rabbitmq/files/epmd.conf
    - template: jinja
    - mode: '0644'
    - makedirs: True

rabbitmq/package:
  pkg.installed:
    - name: rabbitmq-server
    - require:
      - file: rabbitmq/unit
      - file: rabbitmq/epmd

rabbitmq/daemon-reload:
  module.run:
    - name: service.systemctl_reload
    - onchanges:
      - file: rabbitmq/unit
      - file: rabbitmq/epmd
    - require:
      - pkg: rabbitmq/package

# What the brokers of a cluster, and the command line, know one another by.
rabbitmq/cookie:
  file.managed:
    - name: /var/lib/rabbitmq/.erlang.cookie
    - source: salt://rabbitmq/files/cookie
    - template: jinja
    - user: rabbitmq
    - group: rabbitmq
    - mode: '0400'
    - show_changes: False
    - require:
      - pkg: rabbitmq/package

rabbitmq/plugins:
  file.managed:
    - name: /etc/rabbitmq/enabled_plugins
    - contents: '[rabbitmq_management].'
    - user: rabbitmq
    - group: rabbitmq
    - mode: '0644'
    - require:
      - pkg: rabbitmq/package

rabbitmq/environment:
  file.managed:
    - name: /etc/rabbitmq/rabbitmq-env.conf
    - source: salt://rabbitmq/files/rabbitmq-env.conf
    - template: jinja
    - user: rabbitmq
    - group: rabbitmq
    - mode: '0644'
    - require:
      - pkg: rabbitmq/package

rabbitmq/config:
  file.managed:
    - name: /etc/rabbitmq/rabbitmq.conf
    - source: salt://rabbitmq/files/rabbitmq.conf
    - template: jinja
    - user: rabbitmq
    - group: rabbitmq
    - mode: '0640'
    - require:
      - pkg: rabbitmq/package

rabbitmq/definitions:
  file.managed:
    - name: /etc/rabbitmq/definitions.json
    - source: salt://rabbitmq/files/definitions.json
    - template: jinja
    - user: rabbitmq
    - group: rabbitmq
    - mode: '0640'
    - show_changes: False
    - require:
      - pkg: rabbitmq/package

{%- if salt['inventory.peers']('broker') | length > 1 %}

rabbitmq/unknown:
  broker.unknown:
    - require:
      - pkg: rabbitmq/package
      - file: rabbitmq/cookie
    - require_in:
      - daemon: rabbitmq/running
{%- endif %}

rabbitmq/running:
  daemon.running:
    - name: rabbitmq-server
    - restart_for:
      - /etc/rabbitmq/rabbitmq.conf
      - /etc/rabbitmq/rabbitmq-env.conf
      - /etc/rabbitmq/enabled_plugins
      - /etc/systemd/system/rabbitmq-server.service.d/saltern.conf
    - require:
      - module: rabbitmq/daemon-reload
      - file: rabbitmq/cookie
      - file: rabbitmq/plugins
      - file: rabbitmq/environment
      - file: rabbitmq/config
      - file: rabbitmq/definitions

rabbitmq/apply:
  cmd.run:
    - name: rabbitmqctl import_definitions /etc/rabbitmq/definitions.json
    - onchanges:
      - file: rabbitmq/definitions
    - require:
      - daemon: rabbitmq/running

{%- if salt['inventory.peers']('broker') | length > 1 %}

rabbitmq/cluster:
  broker.clustered:
    - require:
      - daemon: rabbitmq/running
    - require_in:
      - cmd: rabbitmq/apply
{%- endif %}

# The package's user with a password that everybody knows.
rabbitmq/no-guest:
  cmd.run:
    - name: rabbitmqctl delete_user guest
    - onlyif: rabbitmqctl -q list_users | grep -q ^guest
    - require:
      - daemon: rabbitmq/running
