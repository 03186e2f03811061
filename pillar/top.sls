{#- What each host is told. The environment is the one whose hosts.yaml lists the authenticated
    minion id; a secret goes only to the hosts whose roles stand beside it in this table. -#}
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
  'backup': ['backup', 'database'],
  'backup-keeper': ['backup'],
  'uploads': ['app', 'backup'],
} %}
base:
  '{{ opts.id }}':
    - environment
{%- for name, readers in secrets.items() if roles | intersect(readers) %}
    - environments.{{ environment }}.secrets.{{ name }}
{%- endfor %}
