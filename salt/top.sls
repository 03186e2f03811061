# Which services a host gets: those that its roles bring (the table is in _modules/inventory.py).
# A host that can't be set up gets one state, which fails and says why.
base:
  '{{ grains.id }}':
{%- if 'settings.refusal' in salt and not salt['settings.refusal']() %}
{%- for service in salt['inventory.services']() %}
    - {{ service }}
{%- endfor %}
{%- else %}
    - refused
{%- endif %}
