{#- What a host is told of its environment: the inventory, the sites, the overrides,
    the operators. -#}
{%- from 'environments/map.jinja' import environment, entry, peopled with context %}
environment: {{ environment | json }}
{%- if environment %}
{%- set folder = 'environments/' ~ environment %}
{%- import_yaml folder ~ '/hosts.yaml' as inventory %}
{%- import_yaml folder ~ '/sites.yaml' as sites %}
{%- import_yaml folder ~ '/overrides.yaml' as overrides %}
{%- import_yaml folder ~ '/operators.yaml' as operators %}
hosts: {{ inventory.hosts | json }}
sites: {{ sites.sites | json }}
environments: {{ ([environment] if environment == 'lab' else peopled) | json }}
overrides: {{ overrides | default({}, true) | json }}
operators: {{ operators.operators | json }}
{%- if entry != opts.id %}
{#- An elastic host: the inventory names it by a pattern, its address comes from the mine. #}
mine_functions:
  inventory.address: []
{%- endif %}
{%- endif %}
