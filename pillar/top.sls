{#- What each host is told. The environment is the one whose hosts.yaml lists the authenticated
    minion id; a secret goes only to the hosts whose roles stand beside it in this table, where `*`
    stands for every host of the environment. -#}
{%- from 'environments/map.jinja' import environment, roles with context %}
{%- set secrets = {
  'django': ['app', 'worker'],
  'haproxy': ['loadbalancer'],
  'postgres': ['app', 'worker', 'database'],
  'redis': ['app', 'worker', 'cache'],
  'redis-operator': ['cache', 'broker'],
  'broker': ['app', 'worker', 'broker'],
  'rabbitmq': ['broker'],
  'replication': ['database'],
  'mariadb': ['app', 'worker', 'mariadb'],
  'mariadb-copies': ['mariadb', 'backup'],
  'backup': ['backup', 'database'],
  'backup-keeper': ['backup'],
  'rsyslog': ['*'],
  'elasticsearch': ['log'],
  'uploads': ['app', 'backup'],
} %}
base:
  '{{ opts.id }}':
    # Whoever needs a secret that nobody wrote down says so in a sentence.
    - ignore_missing: true
    - environment
{%- for name, readers in secrets.items() if roles | intersect(readers) or (roles and '*' in readers) %}
    - environments.{{ environment }}.secrets.{{ name }}
{%- endfor %}
