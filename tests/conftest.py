"""What has to be set before the first product is computed, as the commands do it."""

from understudy.process import fix_products

fix_products()
