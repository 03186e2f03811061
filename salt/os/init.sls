# What every host gets: the tools to look after it, its peers' names, the kernel's limits.
{%- set os = salt['settings.get']('os') %}

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

os/somaxconn:
  sysctl.present:
    - name: net.core.somaxconn
    - value: {{ os.somaxconn }}
    - config: /etc/sysctl.d/60-saltern.conf
{% if grains.hardware.kind == 'container' %}
# A container shares the memory management of its machine and can't change it.
os/memory:
  test.show_notification:
    - text: vm.swappiness and vm.dirty_* are left alone, as this host is a container.
{%- else %}
os/swappiness:
  sysctl.present:
    - name: vm.swappiness
    - value: {{ os.swappiness }}
    - config: /etc/sysctl.d/60-saltern.conf

os/dirty-background:
  sysctl.present:
    - name: vm.dirty_background_bytes
    - value: {{ os.dirty_background.bytes }}
    - config: /etc/sysctl.d/60-saltern.conf

os/dirty:
  sysctl.present:
    - name: vm.dirty_bytes
    - value: {{ os.dirty.bytes }}
    - config: /etc/sysctl.d/60-saltern.conf
{%- endif %}
