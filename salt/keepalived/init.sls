# The address that the balancers share. Without an address in the pillar nothing is installed.
{%- set keepalived = salt['settings.get']('keepalived') %}
{%- if keepalived.address %}

include:
  - haproxy

keepalived/package:
  pkg.installed:
    - pkgs: [keepalived, curl]

keepalived/config:
  file.managed:
    - name: /etc/keepalived/keepalived.conf
    - source: salt://keepalived/files/keepalived.conf
    - template: jinja
    - mode: '0644'
    # keepalived 2.2.7 kills itself when its own check meets a script, so it is shown the rest.
    - check_cmd: >-
        sh -c 'sed "/^vrrp_script/,/^}/d; /track_script {/,/}/d" "$0" >"$0.check";
        keepalived --config-test --use-file "$0.check"; status=$?; rm -f "$0.check"; exit $status'
    - require:
      - pkg: keepalived/package

# After HAProxy, so that a new balancer doesn't take the address before it can answer.
keepalived/service:
  service.running:
    - name: keepalived
    - enable: True
    - reload: True
    - watch:
      - file: keepalived/config
    - require:
      - service: haproxy/service
{%- elif salt['file.file_exists']('/etc/keepalived/keepalived.conf') %}

keepalived/service:
  service.dead:
    - name: keepalived
    - enable: False
{%- endif %}
