"""Build spatial scenes: directions in words and degrees, captions, head and room responses, rendering."""
