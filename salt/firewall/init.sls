# The firewall: one ruleset, of what this host's services declare.
{%- set firewall = salt['settings.get']('firewall') %}
{%- set candidate = '/etc/saltern/nftables.conf' %}

firewall/package:
  pkg.installed:
    - name: nftables

firewall/rules:
  file.managed:
    - name: {{ candidate }}
    - source: salt://firewall/files/nftables.conf
    - template: jinja
    - mode: '0644'
    - makedirs: True
    - check_cmd: nft --check --file
    - require:
      - pkg: firewall/package

# Puts them in force, and to where they are found at boot once the master was reached under them.
firewall/loaded:
  firewall.loaded:
    - name: {{ candidate }}
    - patience: {{ firewall.patience.s }}
    - require:
      - file: firewall/rules

firewall/at-boot:
  service.enabled:
    - name: nftables
    - require:
      - firewall: firewall/loaded
