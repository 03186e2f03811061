# Memcached, bound to the private address. It can't reload, and a restart empties it: a changed
# setting waits for the operator's restart.

# Before the package, so that the daemon's first start is already ours.
memcached/unit:
  file.managed:
    - name: /etc/systemd/system/memcached.service.d/saltern.conf
    - source: salt://memcached/files/unit.conf
    - template: jinja
    - mode: '0644'
    - makedirs: True

memcached/package:
  pkg.installed:
    - name: memcached
    - require:
      - file: memcached/unit

memcached/daemon-reload:
  module.run:
    - name: service.systemctl_reload
    - onchanges:
      - file: memcached/unit
    - require:
      - pkg: memcached/package

memcached/running:
  daemon.running:
    - name: memcached
    - restart_for: [/etc/systemd/system/memcached.service.d/saltern.conf]
    - require:
      - module: memcached/daemon-reload
