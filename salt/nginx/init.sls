# The web server: one checked configuration file for all sites of the host.

nginx/package:
  pkg.installed:
    - pkgs: [nginx-light, libnginx-mod-http-brotli-static]

# The package starts a server on all addresses, beside which ours couldn't bind its own.
nginx/first-server:
  cmd.run:
    - name: systemctl stop nginx
    - unless: grep --quiet 'Managed by Saltern' /etc/nginx/nginx.conf
    - require:
      - pkg: nginx/package
    - require_in:
      - file: nginx/config

nginx/pages:
  file.directory:
    - name: /usr/share/nginx/saltern
    - mode: '0755'
    - require:
      - pkg: nginx/package
{% for status in (400, 404, 413, 429, 500, 502, 503, 504) %}
nginx/pages/{{ status }}:
  file.managed:
    - name: /usr/share/nginx/saltern/{{ status }}.html
    - source: salt://nginx/files/error.html
    - template: jinja
    - context:
        status: {{ status }}
    - mode: '0644'
    - require:
      - file: nginx/pages
{% endfor %}
nginx/config:
  file.managed:
    - name: /etc/nginx/nginx.conf
    - source: salt://nginx/files/nginx.conf
    - template: jinja
    - mode: '0644'
    - check_cmd: nginx -t -q -c
    - require:
      - pkg: nginx/package

# The package starts nginx on every address; from there it can't be reloaded onto ours alone, as the
# port is taken. Nothing is served yet, so nothing is lost.
nginx/first-start:
  cmd.run:
    - name: systemctl restart nginx
    - onchanges:
      - pkg: nginx/package
    - require:
      - file: nginx/config
    - require_in:
      - service: nginx/service

nginx/service:
  service.running:
    - name: nginx
    - enable: True
    - reload: True
    - watch:
      - file: nginx/config
