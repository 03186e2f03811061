# Background work: for each site and queue, beat and daemon a unit whose instance is a release.
# Which release runs is `deploy`'s business: it starts the new one's workers beside the old ones,
# which finish what they have.

celery/service:
  file.managed:
    - name: /usr/local/lib/saltern/celery_service.py
    - source: salt://celery/files/celery_service.py
    - mode: '0644'
    - makedirs: True
{% for unit in salt['celery.units']() %}
celery/{{ unit.site }}/{{ unit.kind }}/{{ unit.of }}:
  file.managed:
    - name: /etc/systemd/system/{{ unit.name }}@.service
    - source: salt://celery/files/unit.service
    - template: jinja
    - context:
        unit: {{ unit | json }}
    - mode: '0644'
    - check_cmd: systemd-analyze verify
    - tmp_ext: '@1.service'
    - require:
      - file: celery/service
    - watch_in:
      - module: celery/daemon-reload
{% endfor %}
celery/daemon-reload:
  module.wait:
    - name: service.systemctl_reload
{% for site in salt['sites.list']() %}
celery/{{ site }}/running:
  celery.running:
    - name: {{ site }}
    - require:
      - module: celery/daemon-reload
{% endfor %}

# A queue or daemon that was taken out of sites.yaml, a removed site.
celery/cleaned:
  celery.cleaned: []
