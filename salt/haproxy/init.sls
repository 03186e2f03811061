# The load balancer: takes every request and hands it to a web accelerator.

haproxy/package:
  pkg.installed:
    - name: haproxy

haproxy/config:
  file.managed:
    - name: /etc/haproxy/haproxy.cfg
    - source: salt://haproxy/files/haproxy.cfg
    - template: jinja
    - mode: '0644'
    - check_cmd: haproxy -c -q -f
    - require:
      - pkg: haproxy/package

haproxy/service:
  service.running:
    - name: haproxy
    - enable: True
    - reload: True
    - watch:
      - file: haproxy/config
