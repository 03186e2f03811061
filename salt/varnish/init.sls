# The web accelerator: Varnish, its unit and its VCL.

# Before the package, so that the daemon's first start is already ours; it has no VCL until then
# and waits.
varnish/unit:
  file.managed:
    - name: /etc/systemd/system/varnish.service.d/saltern.conf
    - source: salt://varnish/files/unit.conf
    - template: jinja
    - mode: '0644'
    - makedirs: True

varnish/package:
  pkg.installed:
    - name: varnish
    - require:
      - file: varnish/unit

varnish/daemon-reload:
  module.run:
    - name: service.systemctl_reload
    - onchanges:
      - file: varnish/unit
    - require:
      - pkg: varnish/package

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

# Compiles the new VCL beside the running one and swaps: nothing that is cached is lost.
varnish/reload:
  cmd.run:
    - name: systemctl reload varnish
    - onchanges:
      - file: varnish/vcl
    - require:
      - daemon: varnish/running
