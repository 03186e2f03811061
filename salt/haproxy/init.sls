# The load balancer: takes every request, ends TLS, and hands it to the hosts behind.
{%- set sites = {} %}
{%- for name in salt['sites.list']() %}
{%- do sites.update({name: salt['sites.get'](name).tls.certificate}) %}
{%- endfor %}
{%- set made = ('authority', 'acme') %}

haproxy/package:
  pkg.installed:
    - pkgs: [haproxy, socat, openssl, acme-tiny]

# Before a reload the unit notes which servers are drained, and which weights were set by hand.
haproxy/unit:
  file.managed:
    - name: /etc/systemd/system/haproxy.service.d/saltern.conf
    - source: salt://haproxy/files/unit.conf
    - mode: '0644'
    - makedirs: True
  module.run:
    - name: service.systemctl_reload
    - onchanges:
      - file: haproxy/unit
    - require:
      - pkg: haproxy/package
{% for status in (400, 403, 408, 429, 500, 502, 503, 504) %}
haproxy/errors/{{ status }}:
  file.managed:
    - name: /etc/haproxy/errors/saltern-{{ status }}.http
    - source: salt://haproxy/files/error.http
    - template: jinja
    - context:
        status: {{ status }}
    - mode: '0644'
    - require:
      - pkg: haproxy/package
    - require_in:
      - file: haproxy/config
    - watch_in:
      - service: haproxy/service
{% endfor %}
{%- for name in sites %}
{%- for status in (500, 502, 503, 504) %}
# Ours at first; haproxy/pages brings what the site has.
haproxy/pages/{{ name }}-{{ status }}:
  file.managed:
    - name: /etc/haproxy/pages/{{ name }}-{{ status }}.http
    - source: salt://haproxy/files/error.http
    - template: jinja
    - context:
        status: {{ status }}
    - mode: '0644'
    - makedirs: True
    - replace: False
    - require:
      - pkg: haproxy/package
    - require_in:
      - file: haproxy/config
    - watch_in:
      - service: haproxy/service
{% endfor %}
{%- endfor %}
haproxy/certificates:
  file.directory:
    - name: /etc/haproxy/certificates
    - mode: '0700'
    - clean: True
    - exclude_pat: 'E@^({{ sites | join('|') }})\.pem$'
    - require:
      - pkg: haproxy/package
{% for name, source in sites.items() if source == 'pillar' %}
haproxy/certificates/{{ name }}:
  file.managed:
    - name: /etc/haproxy/certificates/{{ name }}.pem
    - source: salt://haproxy/files/certificate.pem
    - template: jinja
    - context:
        name: {{ name }}
    - mode: '0600'
    - show_changes: False
    # HAProxy itself judges whether key and certificate are a pair.
    - check_cmd: >-
        sh -c 'printf "frontend x\n mode http\n timeout client 1s\n bind 127.0.0.1:1 ssl crt %s\n"
        "$0" | haproxy -c -q -f /dev/stdin'
    - require:
      - file: haproxy/certificates
    - require_in:
      - file: haproxy/config
    - watch_in:
      - service: haproxy/service
{% endfor %}
# The certificates that the balancer makes or fetches itself, and what it needs for that.
haproxy/secrets:
  file.directory:
    - name: /etc/haproxy/private
    - mode: '0700'
    - require:
      - pkg: haproxy/package
{% for key in ('authority_key', 'acme_account_key') if pillar.get('secrets', {}).get('haproxy', {}).get(key) %}
haproxy/secrets/{{ key }}:
  file.managed:
    - name: /etc/haproxy/private/{{ key }}.pem
    - source: salt://haproxy/files/secret.pem
    - template: jinja
    - context:
        key: {{ key }}
    - mode: '0600'
    - show_changes: False
    - check_cmd: openssl pkey -noout -in
    - require:
      - file: haproxy/secrets
    - require_in:
      - cmd: haproxy/certificates/first
{% endfor %}
haproxy/certificates/plan:
  file.managed:
    - name: /etc/haproxy/certificates.json
    - source: salt://haproxy/files/certificates.json
    - template: jinja
    - mode: '0644'
    - check_cmd: python3 -m json.tool
    - require:
      - pkg: haproxy/package

haproxy/certificates/tool:
  file.managed:
    - name: /usr/local/sbin/saltern-certificates
    - source: salt://haproxy/files/certificates.py
    - mode: '0755'

# What HAProxy needs in order to start: its own authority's certificates, and for sites that get
# theirs by ACME one of their own until the balancer can answer the challenge.
haproxy/certificates/first:
  cmd.run:
    - name: saltern-certificates --first
    - unless: saltern-certificates --first --check
    - require:
      - file: haproxy/certificates
      - file: haproxy/certificates/plan
      - file: haproxy/certificates/tool

haproxy/config:
  file.managed:
    - name: /etc/haproxy/haproxy.cfg
    - source: salt://haproxy/files/haproxy.cfg
    - template: jinja
    - mode: '0644'
    - check_cmd: haproxy -c -q -f
    - require:
      - pkg: haproxy/package
      - cmd: haproxy/certificates/first

haproxy/service:
  service.running:
    - name: haproxy
    - enable: True
    - reload: True
    - require:
      - module: haproxy/unit
    - watch:
      - file: haproxy/config
      - cmd: haproxy/certificates/first

# Pages of sites that are gone.
haproxy/old-pages:
  file.directory:
    - name: /etc/haproxy/pages
    - mode: '0755'
    - clean: True
    - exclude_pat: 'E@^({{ sites | join('|') }})-\d+\.http$'
    - require:
      - service: haproxy/service

# The sites' own pages, from an app host.
haproxy/pages:
  pages.brought:
    - name: haproxy
    - require:
      - file: haproxy/old-pages

haproxy/certificates/timer:
  file.managed:
    - names:
      - /etc/systemd/system/saltern-certificates.service:
        - source: salt://haproxy/files/certificates.service
      - /etc/systemd/system/saltern-certificates.timer:
        - source: salt://haproxy/files/certificates.timer
    - template: jinja
    - mode: '0644'
  module.run:
    - name: service.systemctl_reload
    - onchanges:
      - file: haproxy/certificates/timer
{%- if sites.values() | select('in', made) | list %}
  service.running:
    - name: saltern-certificates.timer
    - enable: True
    - require:
      - module: haproxy/certificates/timer
      - cmd: haproxy/certificates/first

# Fetches and renews; the timer does the same twice a day.
haproxy/certificates/renewed:
  cmd.run:
    - name: saltern-certificates
    - unless: saltern-certificates --check
    - require:
      - service: haproxy/service
{%- else %}
  service.dead:
    - name: saltern-certificates.timer
    - enable: False
    - require:
      - module: haproxy/certificates/timer
{%- endif %}
