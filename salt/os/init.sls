# What every host gets: the tools to look after it, its name and its peers', the kernel's limits, the
# time, an end to its logs.
{%- set os = salt['settings.get']('os') %}
{%- set hostname = os.hostname or grains.id.partition('.')[0] %}

os/packages:
  pkg.installed:
    - pkgs: {{ os.packages | json }}
    - refresh: {{ not salt['file.directory_exists']('/var/lib/saltern') }}

# Marks a host whose package lists were read once: later runs ask the mirror only when a package
# is missing.
os/folder:
  file.directory:
    - name: /var/lib/saltern
    - mode: '0755'
    - require:
      - pkg: os/packages

os/hosts:
  file.managed:
    - name: /etc/hosts
    - source: salt://os/files/hosts
    - template: jinja
    - mode: '0644'

os/hostname:
  file.managed:
    - name: /etc/hostname
    - contents: {{ hostname }}
    - mode: '0644'
  cmd.run:
    - name: hostname --file /etc/hostname
    - unless: test "$(hostname)" = {{ hostname }}
    - require:
      - file: os/hosts
      - file: os/hostname

os/sysctl:
  file.managed:
    - name: /etc/sysctl.d/60-saltern.conf
    - source: salt://os/files/sysctl.conf
    - template: jinja
    - mode: '0644'

os/kernel:
  kernel.tuned:
    - name: /etc/sysctl.d/60-saltern.conf
    - require:
      - file: os/sysctl

os/logrotate:
{%- if salt['file.file_exists']('/etc/logrotate.d/salt') or salt['file.file_exists']('/etc/logrotate.d/salt-common') %}
  file.absent:
    - name: /etc/logrotate.d/saltern
{%- else %}
  file.managed:
    - name: /etc/logrotate.d/saltern
    - source: salt://os/files/logrotate
    - mode: '0644'
    - check_cmd: logrotate --debug
    - require:
      - pkg: os/packages
{%- endif %}
{% if grains.hardware.kind == 'container' %}
os/time:
  test.show_notification:
    - text: The clock is left alone, as this host is a container and has that of its machine.
{%- else %}
os/time:
  pkg.installed:
    - name: chrony
  file.managed:
    - name: /etc/chrony/sources.d/saltern.sources
    - source: salt://os/files/chrony.sources
    - template: jinja
    - mode: '0644'
    - require:
      - pkg: os/time
  service.running:
    - name: chrony
    - enable: True
    - watch:
      - file: os/time
      - file: os/time/own-servers

# Those that the package brings are asked only where nobody named others.
os/time/own-servers:
  file.{{ 'comment' if os.time_servers else 'uncomment' }}:
    - name: /etc/chrony/chrony.conf
    - regex: '^(pool|server) '
    - backup: False
    # In a trial run the package isn't there yet.
    - onlyif: grep -qE '^#?(pool|server) ' /etc/chrony/chrony.conf
    - require:
      - pkg: os/time
{%- endif %}
