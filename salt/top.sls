# Which services a host gets: those that its roles bring (the table is in _modules/inventory.py).
# A host that no inventory lists, or whose settings are wrong, is refused: it gets the sentences that
# say why, and nothing is applied.
base:
  '{{ grains.id }}':
{%- if salt['settings.errors']() %}
    - refused
{%- else %}
{%- for service in salt['inventory.services']() %}
    - {{ service }}
{%- endfor %}
{%- endif %}
