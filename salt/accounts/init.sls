# Accounts: operators, their keys, what they may; and those who are none any more.
{%- set accounts = salt['settings.get']('accounts') %}
{%- set operators = salt['accounts.operators']() %}

accounts/sudo:
  pkg.installed:
    - name: sudo

# Root's own, where nobody puts a further key.
accounts/keys:
  file.directory:
    - name: /etc/ssh/authorized_keys.d
    - mode: '0755'
    - makedirs: True

# Who is in it and no operator any more has to go.
accounts/group:
  group.present:
    - name: operators
    - system: True
{% for name, operator in operators.items() %}
accounts/{{ name }}/user:
  user.present:
    - name: {{ name }}
    - shell: {{ operator.shell }}
    - groups: [operators]
    - remove_groups: False
    - require:
      - group: accounts/group
{% if operator['keys'] %}
accounts/{{ name }}/keys:
  file.managed:
    - name: /etc/ssh/authorized_keys.d/{{ name }}
    - source: salt://accounts/files/keys
    - template: jinja
    - context:
        keys: {{ operator['keys'] | json }}
    - mode: '0644'
    - check_cmd: ssh-keygen -l -f
    - require:
      - file: accounts/keys
      - user: accounts/{{ name }}/user
{%- else %}
accounts/{{ name }}/keys:
  file.absent:
    - name: /etc/ssh/authorized_keys.d/{{ name }}
{%- endif %}
{% endfor %}
accounts/sudoers:
  file.managed:
    - name: /etc/sudoers.d/saltern
    - source: salt://accounts/files/sudoers
    - template: jinja
    - mode: '0440'
    - check_cmd: visudo -cf
    - require:
      - pkg: accounts/sudo

accounts/cleaned:
  accounts.cleaned:
    - require:
      - file: accounts/sudoers
{% if accounts.lock_root and salt['accounts.way_in']() %}
accounts/root:
  user.present:
    - name: root
    - password: '*'
{%- else %}
accounts/root:
  test.show_notification:
    - text: root's password is left as it is{% if accounts.lock_root %}, as no operator with a key may become root here{% endif %}.
{%- endif %}
