# SSH: no root, no passwords; changed so that nobody is locked out.
{%- set candidate = '/etc/saltern/sshd_config' %}

ssh/package:
  pkg.installed:
    - name: openssh-server

# Images come without the host's own keys, or with everybody's: those that lack are made.
ssh/host-keys:
  cmd.run:
    - name: ssh-keygen -A
    - unless: test -s /etc/ssh/ssh_host_ed25519_key -a -s /etc/ssh/ssh_host_rsa_key
    - require:
      - pkg: ssh/package
{% if salt['accounts.way_in']() %}
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
    - mode: '0600'
    - makedirs: True
    - check_cmd: /usr/sbin/sshd -t -f
    - require:
      - cmd: ssh/host-keys
      - file: ssh/run

# Takes the place of the one in use, which is put back if sshd then doesn't answer.
ssh/configured:
  sshd.configured:
    - name: {{ candidate }}
    - require:
      - file: ssh/config
      - cmd: ssh/socket
{%- else %}
ssh/untouched:
  test.show_notification:
    - text: SSH is left as it is, as no operator with a key may become root here. See docs/ssh.md.
{%- endif %}
