# Updates: security ones come by themselves, what holds data or is Salt is left to the operator.
{%- set updates = salt['settings.get']('updates') %}

updates/package:
  pkg.installed:
    - pkgs: [unattended-upgrades]
    - install_recommends: False

updates/config:
  file.managed:
    - name: /etc/apt/apt.conf.d/60saltern
    - source: salt://updates/files/apt.conf
    - template: jinja
    - mode: '0644'
    - check_cmd: apt-config dump --config-file
    - require:
      - pkg: updates/package

# At the end: what the other services install is held from the first run on.
updates/held:
  updates.held:
    - patterns: {{ updates.held | json }}
    - order: last
