# Redis: one server for each purpose that this host has. A changed setting is taken over by the
# running server; none is ever restarted here.
{%- set servers = salt['redis.servers']() %}
{%- if servers %}

# The package's own server: ours are instances of redis-server@.
redis/no-default-server:
  file.symlink:
    - name: /etc/systemd/system/redis-server.service
    - target: /dev/null

redis/package:
  pkg.installed:
    - name: redis-server
    - require:
      - file: redis/no-default-server

redis/template-unit:
  file.managed:
    - name: /etc/systemd/system/redis-server@.service.d/saltern.conf
    - source: salt://redis/files/unit.conf
    - template: jinja
    - mode: '0644'
    - makedirs: True
    - require:
      - pkg: redis/package
  module.run:
    - name: service.systemctl_reload
    - onchanges:
      - file: redis/template-unit
{% for server in servers %}
redis/{{ server.purpose }}/data:
  file.directory:
    - name: /var/lib/redis/{{ server.purpose }}
    - user: redis
    - group: redis
    - mode: '0750'
    - require:
      - pkg: redis/package

redis/{{ server.purpose }}/users:
  file.managed:
    - name: /etc/redis/{{ server.purpose }}.acl
    - source: salt://redis/files/users.acl
    - template: jinja
    - context:
        purpose: {{ server.purpose }}
    - user: redis
    - group: redis
    - mode: '0640'
    - show_changes: False
    - require:
      - pkg: redis/package

redis/{{ server.purpose }}/config:
  file.managed:
    - name: /etc/redis/redis-{{ server.purpose }}.conf
    - source: salt://redis/files/redis.conf
    - template: jinja
    - context:
        purpose: {{ server.purpose }}
    - user: redis
    - group: redis
    - mode: '0640'
    - show_changes: False
    # Redis reads the whole file before it finds that it may listen nowhere.
    - check_cmd: >-
        sh -c 'told=$(redis-server "$0" --port 0 --unixsocket "" --pidfile "");
        echo "$told"; echo "$told" | grep -q "not listen anywhere"'
    - require:
      - file: redis/{{ server.purpose }}/data
      - file: redis/{{ server.purpose }}/users

redis/{{ server.purpose }}/running:
  daemon.running:
    - name: redis-server@{{ server.purpose }}
    - restart_for: [/etc/systemd/system/redis-server@.service.d/saltern.conf]
    - require:
      - file: redis/{{ server.purpose }}/config
      - module: redis/template-unit

redis/{{ server.purpose }}/apply:
  module.run:
    - name: redis.apply
    - purpose: {{ server.purpose }}
    - onchanges:
      - file: redis/{{ server.purpose }}/config
      - file: redis/{{ server.purpose }}/users
    - require:
      - daemon: redis/{{ server.purpose }}/running
{% endfor %}
{%- endif %}
