# The web accelerator: Varnish, its unit, its VCL, its log.
{%- set varnish = salt['settings.get']('varnish') %}
{%- set sites = salt['sites.list']() %}

# Before the package, so that the daemon's first start is already ours; it has no VCL until then
# and waits.
varnish/unit:
  file.managed:
    - name: /etc/systemd/system/varnish.service.d/saltern.conf
    - source: salt://varnish/files/unit.conf
    - template: jinja
    - mode: '0644'
    - makedirs: True

# Debian's log daemon would start with the package and fail, as Varnish doesn't run yet; ours is
# below.
varnish/log/debian:
  file.symlink:
    - name: /etc/systemd/system/varnishncsa.service
    - target: /dev/null

varnish/package:
  pkg.installed:
    - name: varnish
    - require:
      - file: varnish/unit
      - file: varnish/log/debian

varnish/daemon-reload:
  module.run:
    - name: service.systemctl_reload
    - onchanges:
      - file: varnish/unit
    - require:
      - pkg: varnish/package

{% for name in sites %}
# Empty at first; varnish/pages brings what the site has.
varnish/pages/{{ name }}:
  file.managed:
    - name: /etc/varnish/pages/{{ name }}.vcl
    - source: salt://varnish/files/pages.vcl
    - template: jinja
    - context:
        label: {{ name | regex_replace('[^A-Za-z0-9]', '_') }}
    - mode: '0644'
    - makedirs: True
    - replace: False
    - require:
      - pkg: varnish/package
    - require_in:
      - file: varnish/vcl
{% endfor %}
varnish/vcl:
  file.managed:
    - name: /etc/varnish/saltern.vcl
    - source: salt://varnish/files/saltern.vcl
    - template: jinja
    - mode: '0644'
    - check_cmd: varnishd -n /run/saltern-vcl -C -f
    - require:
      - pkg: varnish/package

varnish/running:
  daemon.running:
    - name: varnish
    - restart_for: [/etc/systemd/system/varnish.service.d/saltern.conf]
    - require:
      - file: varnish/vcl
      - module: varnish/daemon-reload

# Compiles the VCL beside the running one and swaps: nothing that is cached is lost.
varnish/loaded:
  varnish.loaded:
    - name: /etc/varnish/saltern.vcl
    - require:
      - file: varnish/vcl
      - daemon: varnish/running

# Pages of sites that are gone.
varnish/old-pages:
  file.directory:
    - name: /etc/varnish/pages
    - mode: '0755'
    - clean: True
    - exclude_pat: 'E@^({{ sites | join('|') }})\.vcl$'
    - require:
      - varnish: varnish/loaded

# The sites' own pages, from an app host.
varnish/pages:
  pages.brought:
    - name: varnish
    - require:
      - file: varnish/old-pages

varnish/log/unit:
  file.managed:
    - name: /etc/systemd/system/saltern-varnish-log.service
    - source: salt://varnish/files/log.service
    - template: jinja
    - mode: '0644'
    - require:
      - pkg: varnish/package
  module.run:
    - name: service.systemctl_reload
    - onchanges:
      - file: varnish/log/unit

varnish/log:
{%- if varnish.log == 'none' %}
  service.dead:
    - name: saltern-varnish-log
    - enable: False
{%- else %}
  # By whom it is wanted is read when it is enabled, not when systemd reads units again.
  cmd.run:
    - name: systemctl reenable saltern-varnish-log
    - onchanges:
      - file: varnish/log/unit
    - require:
      - module: varnish/log/unit
  service.running:
    - name: saltern-varnish-log
    - enable: True
    - watch:
      - file: varnish/log/unit
{%- endif %}
    - require:
      - module: varnish/log/unit
      - daemon: varnish/running
