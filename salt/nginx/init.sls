# The web server: one checked configuration file for all sites of the host.

nginx/package:
  pkg.installed:
    - name: nginx-light

nginx/config:
  file.managed:
    - name: /etc/nginx/nginx.conf
    - source: salt://nginx/files/nginx.conf
    - template: jinja
    - mode: '0644'
    - check_cmd: nginx -t -q -c
    - require:
      - pkg: nginx/package

nginx/service:
  service.running:
    - name: nginx
    - enable: True
    - reload: True
    - watch:
      - file: nginx/config
