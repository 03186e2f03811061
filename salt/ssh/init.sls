# SSH: no root, no passwords; changed so that nobody is locked out.
{%- set candidate = '/etc/saltern/sshd_config' %}
{#- What the host is known by. No other key is offered, whatever the image brings. #}
{%- set keys = {'ed25519': '/etc/ssh/ssh_host_ed25519_key', 'rsa': '/etc/ssh/ssh_host_rsa_key'} %}

ssh/package:
  pkg.installed:
    - name: openssh-server

{%- if salt['accounts.way_in']() %}

# Images come without them, or with weak ones. A good one stays as it is.
ssh/host-keys:
  sshd.keyed:
    - keys: {{ keys | json }}
    - require:
      - pkg: ssh/package

# Some systems have systemd listen for sshd, which then has no say in the port.
ssh/socket:
  cmd.run:
    - name: systemctl disable --now ssh.socket && systemctl enable --now ssh.service
    - onlyif: systemctl --quiet is-active ssh.socket
    - require:
      - pkg: ssh/package

# sshd wants this folder even for checking.
ssh/run:
  file.directory:
    - name: /run/sshd
    - mode: '0755'

ssh/config:
  file.managed:
    - name: {{ candidate }}
    - source: salt://ssh/files/sshd_config
    - template: jinja
    - context:
        keys: {{ keys | json }}
    - mode: '0600'
    - makedirs: True
    - check_cmd: /usr/sbin/sshd -t -f
    - require:
      - sshd: ssh/host-keys
      - file: ssh/run

# Takes the place of the one in use, which is put back if sshd then doesn't answer.
ssh/configured:
  sshd.configured:
    - name: {{ candidate }}
    - require:
      - file: ssh/config
      - cmd: ssh/socket

# The unit checks configuration and keys before sshd reads them; sessions go on.
ssh/keys-read:
  cmd.run:
    - name: systemctl reload ssh.service
    - onchanges:
      - sshd: ssh/host-keys
    - require:
      - sshd: ssh/configured
{%- else %}

ssh/untouched:
  test.show_notification:
    - text: SSH is left as it is, as no operator with a key may become root here. See docs/ssh.md.
{%- endif %}
