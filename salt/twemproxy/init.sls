# twemproxy, on loopback, before all cache hosts of the inventory. It can't reload; it holds
# nothing, so a changed ring restarts it: an operation that is under way is a cache miss.
{%- if salt['inventory.peers']('cache') %}

twemproxy/package:
  pkg.installed:
    - name: nutcracker

twemproxy/config:
  file.managed:
    - name: /etc/nutcracker/nutcracker.yml
    - source: salt://twemproxy/files/nutcracker.yml
    - template: jinja
    - mode: '0644'
    - check_cmd: nutcracker --test-conf --conf-file
    - require:
      - pkg: twemproxy/package

twemproxy/unit:
  file.managed:
    - name: /etc/systemd/system/nutcracker.service.d/saltern.conf
    - source: salt://twemproxy/files/unit.conf
    - template: jinja
    - mode: '0644'
    - makedirs: True
  module.run:
    - name: service.systemctl_reload
    - onchanges:
      - file: twemproxy/unit

twemproxy/service:
  service.running:
    - name: nutcracker
    - enable: True
    - watch:
      - file: twemproxy/config
      - file: twemproxy/unit
    - require:
      - module: twemproxy/unit
{%- endif %}
