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

# Puts them in force; once the master was reached under them, they are loaded at boot too.
firewall/loaded:
  firewall.loaded:
    - name: {{ candidate }}
    - patience: {{ firewall.patience.s }}
    - require:
      - file: firewall/rules
