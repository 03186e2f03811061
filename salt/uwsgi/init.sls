# The app server: the emperor, and each site's part of its vassal. Which release a vassal runs is
# `deploy`'s business: it writes /etc/uwsgi/vassals/, with this part included.

uwsgi/package:
  pkg.installed:
    - pkgs: [uwsgi-core, uwsgi-plugin-python3]

uwsgi/folders:
  file.directory:
    - names:
      - /etc/uwsgi
      - /etc/uwsgi/sites
      - /etc/uwsgi/vassals
    - mode: '0755'

uwsgi/run:
  file.managed:
    - name: /etc/tmpfiles.d/saltern-uwsgi.conf
    - source: salt://uwsgi/files/tmpfiles.conf
    - template: jinja
    - mode: '0644'
  cmd.run:
    - name: systemd-tmpfiles --create /etc/tmpfiles.d/saltern-uwsgi.conf
    - onchanges:
      - file: uwsgi/run

uwsgi/emperor:
  file.managed:
    - name: /etc/uwsgi/emperor.ini
    - source: salt://uwsgi/files/emperor.ini
    - mode: '0644'
    - require:
      - file: uwsgi/folders

uwsgi/unit:
  file.managed:
    - name: /etc/systemd/system/uwsgi.service
    - source: salt://uwsgi/files/uwsgi.service
    - template: jinja
    - mode: '0644'
    - check_cmd: systemd-analyze verify
    - tmp_ext: .service
    - require:
      - pkg: uwsgi/package
  module.run:
    - name: service.systemctl_reload
    - onchanges:
      - file: uwsgi/unit

uwsgi/running:
  daemon.running:
    - name: uwsgi
    - restart_for: [/etc/uwsgi/emperor.ini, /etc/systemd/system/uwsgi.service]
    - require:
      - file: uwsgi/emperor
      - module: uwsgi/unit
      - cmd: uwsgi/run
{% for name in salt['sites.list']() %}
uwsgi/{{ name }}/config:
  file.managed:
    - name: /etc/uwsgi/sites/{{ name }}.ini
    - source: salt://uwsgi/files/site.ini
    - template: jinja
    - context:
        name: {{ name }}
    # A reload reads it again, without root's rights.
    - group: {{ salt['sites.user'](name) }}
    - mode: '0640'
    - check_cmd: uwsgi --strict --no-server --ini
    - require:
      - file: uwsgi/folders
      - pkg: uwsgi/package
      - file: django/{{ name }}/environment

# What is live takes the change over without dropping a request; if it can't, it goes on as before.
uwsgi/{{ name }}/afresh:
  deploy.afresh:
    - name: {{ name }}
    - onchanges:
      - file: uwsgi/{{ name }}/config
      - file: django/{{ name }}/environment
    - require:
      - daemon: uwsgi/running
{% endfor %}
