# Which services a host gets: those that its roles bring (the table is in _modules/inventory.py).
# A host that no inventory lists is refused here, with a sentence that says what to do.
base:
  '{{ grains.id }}':
{%- for service in salt['inventory.services']() %}
    - {{ service }}
{%- endfor %}
