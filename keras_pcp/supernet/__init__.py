"""Super-nets: one network that holds many narrower ones, trained together, and the search for the best of them."""

from keras_pcp.supernet.model import StagewiseSupernet
from keras_pcp.supernet.search import Subnet, SupernetSearch
